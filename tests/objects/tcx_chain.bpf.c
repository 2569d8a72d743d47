/* 40 programs of which each jumps to the next, and the last to `hop40`. */
#include "bpf.h"

#define DECLARE(number) int hop##number(struct __sk_buff *context);
#define HOP(number, following)                                                                                         \
    SEC("tc") int hop##number(struct __sk_buff *context) { tail_call(context, &hops, following); return 0; }

DECLARE(1) DECLARE(2) DECLARE(3) DECLARE(4) DECLARE(5) DECLARE(6) DECLARE(7) DECLARE(8) DECLARE(9) DECLARE(10)
DECLARE(11) DECLARE(12) DECLARE(13) DECLARE(14) DECLARE(15) DECLARE(16) DECLARE(17) DECLARE(18) DECLARE(19)
DECLARE(20) DECLARE(21) DECLARE(22) DECLARE(23) DECLARE(24) DECLARE(25) DECLARE(26) DECLARE(27) DECLARE(28)
DECLARE(29) DECLARE(30) DECLARE(31) DECLARE(32) DECLARE(33) DECLARE(34) DECLARE(35) DECLARE(36) DECLARE(37)
DECLARE(38) DECLARE(39) DECLARE(40)
filled_jump_table(hops, 41, struct __sk_buff,
                  [1] = &hop1, [2] = &hop2, [3] = &hop3, [4] = &hop4, [5] = &hop5, [6] = &hop6, [7] = &hop7,
                  [8] = &hop8, [9] = &hop9, [10] = &hop10, [11] = &hop11, [12] = &hop12, [13] = &hop13,
                  [14] = &hop14, [15] = &hop15, [16] = &hop16, [17] = &hop17, [18] = &hop18, [19] = &hop19,
                  [20] = &hop20, [21] = &hop21, [22] = &hop22, [23] = &hop23, [24] = &hop24, [25] = &hop25,
                  [26] = &hop26, [27] = &hop27, [28] = &hop28, [29] = &hop29, [30] = &hop30, [31] = &hop31,
                  [32] = &hop32, [33] = &hop33, [34] = &hop34, [35] = &hop35, [36] = &hop36, [37] = &hop37,
                  [38] = &hop38, [39] = &hop39, [40] = &hop40);

HOP(0, 1) HOP(1, 2) HOP(2, 3) HOP(3, 4) HOP(4, 5) HOP(5, 6) HOP(6, 7) HOP(7, 8) HOP(8, 9) HOP(9, 10) HOP(10, 11)
HOP(11, 12) HOP(12, 13) HOP(13, 14) HOP(14, 15) HOP(15, 16) HOP(16, 17) HOP(17, 18) HOP(18, 19) HOP(19, 20)
HOP(20, 21) HOP(21, 22) HOP(22, 23) HOP(23, 24) HOP(24, 25) HOP(25, 26) HOP(26, 27) HOP(27, 28) HOP(28, 29)
HOP(29, 30) HOP(30, 31) HOP(31, 32) HOP(32, 33) HOP(33, 34) HOP(34, 35) HOP(35, 36) HOP(36, 37) HOP(37, 38)
HOP(38, 39) HOP(39, 40)

SEC("tc") int hop40(struct __sk_buff *context) { return 3; }
