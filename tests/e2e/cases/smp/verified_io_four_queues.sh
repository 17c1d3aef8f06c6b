# Random writes through four queues, with flush, discard and zeroing mixed in, read back as written.
disk data.img 32
guest <<'EOF'
echo "queues: $(ls /sys/block/vda/mq | wc -l)"
guestio verify /dev/vda --processes 4 --requests 500
EOF
boot --cpus 4 --device virtio_blk,disk=data.img,queues=4
expect_status 0
expect_console '^queues: 4$'
expect_console '^verified 4 processes'
