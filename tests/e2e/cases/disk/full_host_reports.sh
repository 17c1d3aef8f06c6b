# The host's file system is full: the guest's write fails, and what was acknowledged before is in the image.
mkdir small
mount -t tmpfs -o size=8m tmpfs small
truncate -s 32M small/data.img
guest <<'EOF'
dd if=/dev/zero bs=1M count=4 2>/dev/null | tr '\0' x | dd of=/dev/vda bs=64k iflag=fullblock conv=notrunc,fsync && echo "first part written"
dd if=/dev/zero of=/dev/vda bs=1M seek=8 count=16 conv=notrunc,fsync || echo "the rest refused"
EOF
boot --device virtio_blk,disk=small/data.img
expect_status 0
expect_console '^first part written$'
expect_console '^the rest refused$'
[ "$(head -c 4194304 small/data.img | tr -d x | wc -c)" = 0 ] || fail "acknowledged data is missing"
umount small
