# A disk of four queues on PCI has a message interrupt for each, writes verified data through all of them, and stays
# usable after its driver has been taken away and given back.
disk data.img 32
guest <<'EOF'
echo "queues: $(ls /sys/block/vda/mq | wc -l)"
guestio verify /dev/vda --processes 4 --requests 300
cat /proc/interrupts
function=$(basename /sys/bus/pci/devices/*)
cd /sys/bus/pci/drivers/virtio-pci
echo "$function" >unbind
[ ! -e /dev/vda ] && echo gone
echo "$function" >bind
guestio verify /dev/vda --processes 2 --requests 100
EOF
boot --cpus 4 --no-defaults --device pl011 --device virtio_blk,disk=data.img,queues=4
expect_status 0
expect_console '^queues: 4$'
expect_console '^verified 4 processes'
for queue in 0 1 2 3; do
    expect_console "MSI.*virtio0-req\.$queue\$"
done
expect_console '^gone$'
expect_console '^verified 2 processes'
