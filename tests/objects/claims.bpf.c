// `a_good` jumps through an array, and so fixes which programs fit. The kernel refuses `bad`, which comes after it.
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

struct {
    __uint(type, BPF_MAP_TYPE_PROG_ARRAY);
    __uint(max_entries, 8);
    __type(key, __u32);
    __type(value, __u32);
} fresh SEC(".maps");

SEC("xdp") int a_good(struct xdp_md *ctx)
{
    bpf_tail_call_static(ctx, &fresh, 0);
    return XDP_PASS;
}

SEC("xdp") int bad(struct xdp_md *ctx)
{
    return *(int *)(long)ctx->data;
}

char LICENSE[] SEC("license") = "GPL";
