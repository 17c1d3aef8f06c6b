# All that the guest had synced is in the image after gvmm is killed amid writes.
disk data.img 64
guest <<'EOF'
guestio append /dev/vda
EOF
start --device virtio_blk,disk=data.img
await '@durable 30'
kill -9 "$(pidof gvmm)"
finish
# The last line may have been cut short.
durable=$(sed '$d' console.log | sed -n 's/^@durable //p' | tail -n 1)
guestio check data.img "$durable"
