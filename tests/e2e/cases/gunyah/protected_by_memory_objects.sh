# A protected guest on generation B, whose driver owns the memory; two vCPUs and two queues.
gunyah B
disk data.img 32
guest <<'END'
nproc
guestio verify /dev/vda --processes 2 --requests 300
END
boot --accel gunyah --cpus 2 --protected --swiotlb 16M --device virtio_blk,disk=data.img,queues=2
expect_status 0
expect_console '^2$'
expect_console '^verified 2 processes'
left_nothing
