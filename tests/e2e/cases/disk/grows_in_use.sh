# A disk that grows while the guest runs shows its new size there, and the new part can be used.
disk data.img 8
guest <<'EOF'
echo "size: $(blockdev --getsize64 /dev/vda)"
until [ "$(blockdev --getsize64 /dev/vda)" = 16777216 ]; do usleep 100000; done
dd if=/dev/zero of=/dev/vda bs=4k seek=4095 count=1 conv=notrunc,fsync && echo "new part written"
EOF
start --device virtio_blk,disk=data.img
await '^size: 8388608'
truncate -s 16M data.img
finish
expect_status 0
expect_console '^new part written'
