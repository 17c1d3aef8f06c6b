# Of two disks one is read-only: the guest cannot write to it, and its image stays as it was.
disk writable.img 8
disk fixed.img
before=$(sha256sum <fixed.img)
guest <<'EOF'
for disk in vda vdb; do
    eval "$(cat /sys/block/$disk/serial)=/dev/$disk"
done
echo "read-only: $(blockdev --getro $fixed) $(blockdev --getro $writable)"
dd if=/dev/zero of=$fixed bs=4k count=1 conv=notrunc,fsync && echo "wrote to the read-only disk"
blockdev --setrw $fixed
dd if=/dev/zero of=$fixed bs=4k count=1 conv=notrunc,fsync && echo "wrote to the read-only disk"
dd if=/dev/zero of=$writable bs=4k count=1 conv=notrunc,fsync && echo "wrote to the other disk"
EOF
boot --device virtio_blk,disk=writable.img,serial=writable --device virtio_blk,disk=fixed.img,readonly=on,serial=fixed
expect_status 0
expect_console '^read-only: 1 0$'
expect_console '^wrote to the other disk$'
no_console '^wrote to the read-only disk$'
[ "$(sha256sum <fixed.img)" = "$before" ] || fail "the read-only image has changed"
