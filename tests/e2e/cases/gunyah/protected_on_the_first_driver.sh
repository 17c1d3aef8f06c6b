# A protected guest where the Resource Manager takes no others, on generation A with Android's additions.
gunyah A+ RM=production
disk root.img
cmdline="$cmdline root=/dev/vda rw"
guest <<'END'
grep ' / ' /proc/mounts
END
boot --accel gunyah --protected --swiotlb 16M --device virtio_blk,disk=root.img
expect_status 0
expect_console '^/dev/vda / ext4 rw'
left_nothing
