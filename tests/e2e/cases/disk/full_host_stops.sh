# With on-error=stop a guest that finds the host full waits, and goes on once there is room.
mkdir small
mount -t tmpfs -o size=8m tmpfs small
truncate -s 32M small/data.img
guest <<'EOF'
dd if=/dev/zero bs=1M count=16 2>/dev/null | tr '\0' x | dd of=/dev/vda bs=64k iflag=fullblock conv=notrunc,fsync && echo "all written"
EOF
start --device virtio_blk,disk=small/data.img,on-error=stop
until grep -q 'the guest waits' gvmm.log; do
    kill -0 "$vmm" || fail "gvmm ended before the disk was full"
    usleep 100000
done
if grep -q 'all written' console.raw; then fail "a write was acknowledged that found no room"; fi
mount -o remount,size=64m small
finish
expect_status 0
expect_console '^all written$'
[ "$(head -c 16777216 small/data.img | tr -d x | wc -c)" = 0 ] || fail "acknowledged data is missing"
umount small
