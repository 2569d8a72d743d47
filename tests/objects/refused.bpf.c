// `reads_too_far` reads one byte behind what it has checked: the verifier refuses it.
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

SEC("xdp") int good(struct xdp_md *ctx)
{
    return XDP_PASS;
}

SEC("xdp") int reads_too_far(struct xdp_md *ctx)
{
    __u8 *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
    if (data + 4 > end)
        return XDP_DROP;
    return data[4] == 7 ? XDP_TX : XDP_PASS;
}

char LICENSE[] SEC("license") = "GPL";
