// A kernel function that no kernel has.
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

extern int no_such_function(struct xdp_md *ctx) __ksym;

SEC("xdp") int p(struct xdp_md *ctx)
{
    return no_such_function(ctx);
}

char LICENSE[] SEC("license") = "GPL";
