# Random writes to a disk that gvmm-device serves to QEMU, through two queues, read back as written.
for block in /sys/block/vd*; do
    [ "$(cat "$block/serial")" = ours ] && disk=${block##*/}
done
[ -n "$disk" ] || fail "no disk has our serial number"
[ "$(ls "/sys/block/$disk/mq" | wc -l)" = 2 ] || fail "the disk has not two queues"
guestio verify "/dev/$disk" --processes 4 --requests 500 >verified
grep '^verified 4 processes' verified
dmesg | grep -i 'i/o error' && fail "the kernel complains"
true
