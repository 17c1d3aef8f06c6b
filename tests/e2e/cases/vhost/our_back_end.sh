# Random writes to a disk that gvmm-device serves, through two queues, read back as written.
disk data.img 32
guest <<'EOF'
echo "queues: $(ls /sys/block/vda/mq | wc -l)"
guestio verify /dev/vda --processes 4 --requests 500
EOF
back_end /gvmm/gvmm-device virtio_blk,disk=data.img,queues=2 --socket-path disk.sock
boot --cpus 2 --stats stats.json --device vhost-user,type=blk,socket=disk.sock,id=disk
expect_status 0
expect_console '^queues: 2$'
expect_console '^verified 4 processes'
expect_stats '"connections": 1,'
gone "$back_end"
