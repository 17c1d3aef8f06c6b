# A kernel that is told to use no MSI works through the interrupt lines, one a device.
disk one.img 32
disk two.img 16
cmdline="$cmdline pci=nomsi"
guest <<'EOF'
guestio verify /dev/vda --processes 2 --requests 200
guestio verify /dev/vdb --processes 1 --requests 100
cat /proc/interrupts
EOF
boot --no-defaults --device pl011 --device virtio_blk,disk=one.img,transport=pci \
    --device virtio_blk,disk=two.img,transport=pci
expect_status 0
expect_console '^verified 2 processes'
expect_console '^verified 1 process'
expect_console 'GICv3 .*virtio0$'
expect_console 'GICv3 .*virtio1$'
no_console 'MSI'
