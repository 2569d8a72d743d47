/* `start` leads to two programs that lead to each other. Nothing leads to `forgotten`. */
#include "bpf.h"

int left(struct __sk_buff *context);
int right(struct __sk_buff *context);
int forgotten(struct __sk_buff *context);
filled_jump_table(ring, 4, struct __sk_buff, [0] = &left, [1] = &right, [3] = &forgotten);

SEC("tc") int start(struct __sk_buff *context) { tail_call(context, &ring, 0); return 0; }

SEC("tc") int left(struct __sk_buff *context) { tail_call(context, &ring, 1); return 0; }

SEC("tc") int right(struct __sk_buff *context) { tail_call(context, &ring, 0); return 0; }

SEC("tc") int forgotten(struct __sk_buff *context) { return 0; }
