# A qcow2 image holds what the guest had synced when gvmm is killed amid writes, and has no flaw but clusters that nothing uses.
qemu-img create -q -f qcow2 data.qcow2 64M
guest <<'EOF'
guestio append /dev/vda
EOF
start --device virtio_blk,disk=data.qcow2,format=qcow2
await '@durable 30'
kill -9 "$(pidof gvmm)"
finish
# The last line may have been cut short.
durable=$(sed '$d' console.log | sed -n 's/^@durable //p' | tail -n 1)
# 3 is what leaked clusters alone come to.
checked=0
qemu-img check data.qcow2 || checked=$?
[ "$checked" = 0 ] || [ "$checked" = 3 ] || fail "the image is corrupt ($checked)"
qemu-img convert -f qcow2 -O raw data.qcow2 data.img
guestio check data.img "$durable"
