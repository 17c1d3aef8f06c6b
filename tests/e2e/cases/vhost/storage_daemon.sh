# Random writes to a disk that QEMU's storage daemon serves, read back as written.
disk data.img 32
guest <<'EOF'
guestio verify /dev/vda --processes 4 --requests 500
EOF
storage_daemon data.img
boot --device vhost-user,type=blk,socket=disk.sock
expect_status 0
expect_console '^verified 4 processes'
