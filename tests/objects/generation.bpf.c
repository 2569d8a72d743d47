// Four programs that stamp each packet with their generation. `last` counts the packets that have seen two of them.
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

#define STAMPS 48 // where the stamps are in a packet
#define MIXED 0
#define WHOLE 1
#define FELL_THROUGH 2

const volatile __u32 generation = 1;

struct {
    __uint(type, BPF_MAP_TYPE_ARRAY);
    __uint(max_entries, 4);
    __type(key, __u32);
    __type(value, __u64);
} counts SEC(".maps");

int second(struct xdp_md *ctx);
int third(struct xdp_md *ctx);
int last(struct xdp_md *ctx);

struct {
    __uint(type, BPF_MAP_TYPE_PROG_ARRAY);
    __uint(max_entries, 4);
    __uint(key_size, sizeof(__u32));
    __array(values, int(struct xdp_md *));
} steps SEC(".maps") = {
    .values = { [1] = (void *)&second, [2] = (void *)&third, [3] = (void *)&last },
};

static __always_inline void count(__u32 what)
{
    __u64 *counter = bpf_map_lookup_elem(&counts, &what);
    if (counter)
        __sync_fetch_and_add(counter, 1);
}

static __always_inline int stamp_and_jump(struct xdp_md *ctx, __u32 step)
{
    __u8 *data = (void *)(long)ctx->data;
    if ((void *)(data + 64) > (void *)(long)ctx->data_end)
        return XDP_ABORTED;
    data[STAMPS + step] = generation;
    bpf_tail_call(ctx, &steps, step + 1);
    count(FELL_THROUGH);
    return XDP_ABORTED;
}

SEC("xdp") int first(struct xdp_md *ctx)
{
    return stamp_and_jump(ctx, 0);
}

SEC("xdp") int second(struct xdp_md *ctx)
{
    return stamp_and_jump(ctx, 1);
}

SEC("xdp") int third(struct xdp_md *ctx)
{
    return stamp_and_jump(ctx, 2);
}

SEC("xdp") int last(struct xdp_md *ctx)
{
    __u8 *data = (void *)(long)ctx->data, mine = generation;
    if ((void *)(data + 64) > (void *)(long)ctx->data_end)
        return XDP_ABORTED;
    count(data[STAMPS] == mine && data[STAMPS + 1] == mine && data[STAMPS + 2] == mine ? WHOLE : MIXED);
    return XDP_PASS;
}

char LICENSE[] SEC("license") = "GPL";
