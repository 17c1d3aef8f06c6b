# Random writes of four processes, with flush, discard and zeroing mixed in, read back as written.
disk data.img 32
guest <<'EOF'
guestio verify /dev/vda --processes 4 --requests 500
EOF
boot --device virtio_blk,disk=data.img
expect_status 0
expect_console '^verified 4 processes'
