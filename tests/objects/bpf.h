/* As much of the kernel's headers as the programs of the tests need, so that clang alone compiles them. */
typedef unsigned char u8;
typedef unsigned int u32;
typedef unsigned long long u64;

struct xdp_md {
    u32 data, data_end, data_meta, ingress_ifindex, rx_queue_index, egress_ifindex;
};
struct __sk_buff {
    u32 len, pkt_type, mark, queue_mapping;
};

#define SEC(name) __attribute__((section(name), used))
#define noinline __attribute__((noinline))
#define ARRAY 2
#define PROG_ARRAY 3
#define number(name, value) int (*name)[value]
#define type(name, value) typeof(value) *name
#define jump_table(name, entries)                                                                                      \
    struct {                                                                                                           \
        number(type, PROG_ARRAY);                                                                                      \
        number(max_entries, entries);                                                                                  \
        type(key, u32);                                                                                                \
        type(value, u32);                                                                                              \
    } name SEC(".maps")

#define filled_jump_table(name, entries, context, ...)                                                                 \
    struct {                                                                                                           \
        number(type, PROG_ARRAY);                                                                                      \
        number(max_entries, entries);                                                                                  \
        number(key_size, 4);                                                                                           \
        int (*values[])(context *);                                                                                    \
    } name SEC(".maps") = {.values = {__VA_ARGS__}}

static void *(*const lookup)(void *map, const void *key) = (void *)1;
static long (*const tail_call)(void *context, void *map, u32 index) = (void *)12;

char _license[] SEC("license") = "GPL";
