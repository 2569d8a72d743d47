// A parser chain: `entry` jumps to the stage that the packet's first byte names, and `ipv4` goes on to `tcp`.
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

const volatile __u32 verdict = XDP_PASS; // what `tcp` returns
const volatile char label[8] = "v1";
__u64 packets;

int ipv4(struct xdp_md *ctx);
int tcp(struct xdp_md *ctx);
int drop(struct xdp_md *ctx);

struct {
    __uint(type, BPF_MAP_TYPE_PROG_ARRAY);
    __uint(max_entries, 16);
    __uint(key_size, sizeof(__u32));
    __array(values, int(struct xdp_md *));
} stages SEC(".maps") = {
    .values = { [1] = (void *)&ipv4, [2] = (void *)&tcp, [3] = (void *)&drop },
};

struct {
    __uint(type, BPF_MAP_TYPE_ARRAY);
    __uint(max_entries, 4);
    __type(key, __u32);
    __type(value, __u64);
} stats SEC(".maps");

SEC("xdp") int entry(struct xdp_md *ctx)
{
    void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
    if (data + 14 > end)
        return XDP_ABORTED;
    __sync_fetch_and_add(&packets, 1);
    bpf_tail_call(ctx, &stages, *(__u8 *)data);
    return XDP_ABORTED; // nothing is in that entry
}

SEC("xdp") int ipv4(struct xdp_md *ctx)
{
    bpf_tail_call_static(ctx, &stages, 2);
    return XDP_ABORTED;
}

SEC("xdp") int tcp(struct xdp_md *ctx)
{
    __u32 key = 1;
    __u64 *seen = bpf_map_lookup_elem(&stats, &key);
    if (seen)
        __sync_fetch_and_add(seen, 1);
    return verdict;
}

SEC("xdp") int drop(struct xdp_md *ctx)
{
    return label[0] == 'v' ? XDP_DROP : XDP_TX;
}

char LICENSE[] SEC("license") = "GPL";
