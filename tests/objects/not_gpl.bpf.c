// A helper that only programs under the GPL may call.
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

SEC("xdp") int p(struct xdp_md *ctx)
{
    bpf_printk("x");
    return XDP_PASS;
}

char LICENSE[] SEC("license") = "Proprietary";
