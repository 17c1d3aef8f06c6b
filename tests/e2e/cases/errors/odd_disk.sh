# A disk of an odd size works, and gvmm says what it does about the size; a disk in use is locked for others.
head -c 1000 /dev/urandom >odd.img
guest <<'EOF'
echo "sectors: $(cat /sys/block/vda/size)"
sleep 1000
EOF
start --device virtio_blk,disk=odd.img
await 'sectors: 2'
mv gvmm.log first.log
gvmm --kernel "$KERNEL" --initrd "$INITRD" --device virtio_blk,disk=odd.img
expect_status 2
expect_message 'is open for writing in process'
mv first.log gvmm.log
kill -TERM "$(pidof gvmm)"
finish
expect_status 0
expect_message 'odd.img has 1000 bytes, not a multiple of 512'
