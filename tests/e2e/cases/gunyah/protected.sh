# A protected guest on generation C: its disk works through the shared window, and nothing else of it is in reach.
gunyah C
disk data.img 32
guest <<'END'
dmesg | grep -i 'restricted-dma-pool'
guestio verify /dev/vda --processes 4 --requests 500
END
boot --accel gunyah --protected --swiotlb 16M --device virtio_blk,disk=data.img
expect_status 0
expect_console 'restricted-dma-pool'
expect_console '^verified 4 processes'
left_nothing
