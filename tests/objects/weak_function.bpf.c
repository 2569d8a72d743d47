// A kernel function that no kernel has, and that the program can do without.
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

extern int no_such_function(struct xdp_md *ctx) __weak __ksym;

SEC("xdp") int p(struct xdp_md *ctx)
{
    return no_such_function ? no_such_function(ctx) : XDP_PASS;
}

char LICENSE[] SEC("license") = "GPL";
