// A field that no kernel's structure has, and that the program only asks for.
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_core_read.h>

struct net_device___none {
    int no_such_field;
} __attribute__((preserve_access_index));

SEC("xdp") int p(struct xdp_md *ctx)
{
    return bpf_core_field_exists(((struct net_device___none *)0)->no_such_field) ? XDP_DROP : XDP_PASS;
}

char LICENSE[] SEC("license") = "GPL";
