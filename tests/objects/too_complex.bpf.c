// A loop that the verifier would have to follow for longer than it does. Its log is long.
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

SEC("xdp") int p(struct xdp_md *ctx)
{
    __u64 sum = 0;
    for (int i = 0; i < 60000; i++) {
        sum += bpf_get_prandom_u32() & i;
        if (sum & 1)
            sum ^= 3;
        asm volatile("" : "+r"(sum));
    }
    return sum;
}

char LICENSE[] SEC("license") = "GPL";
