// A program of tc that jumps through an array of the shape of the demo's, whose programs are of XDP.
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

struct {
    __uint(type, BPF_MAP_TYPE_PROG_ARRAY);
    __uint(max_entries, 16);
    __type(key, __u32);
    __type(value, __u32);
} stages SEC(".maps");

SEC("tc") int p(struct __sk_buff *skb)
{
    bpf_tail_call_static(skb, &stages, 0);
    return 0;
}

char LICENSE[] SEC("license") = "GPL";
