# Devices on PCI and on virtio-mmio work side by side, over a reset of the machine too.
disk one.img 32
disk two.img 32
disk mark.img 1
guest <<'EOF'
for device in /sys/bus/virtio/devices/*; do
    echo "device: $(readlink -f "$device" | grep -o 'pci\|virtio_mmio' | head -n 1)"
done
guestio verify /dev/vda --processes 2 --requests 100
guestio verify /dev/vdb --processes 2 --requests 100
[ -c /dev/hwrng ] && dd if=/dev/hwrng of=/dev/null bs=64 count=1 && echo "random numbers"
if [ "$(dd if=/dev/vdc bs=1 count=4 2>/dev/null)" != done ]; then
    printf done | dd of=/dev/vdc conv=sync,fsync 2>/dev/null
    reboot -f
fi
echo "second life"
EOF
cmdline="$cmdline modules=virtio_rng"
boot --cpus 2 --no-defaults --device pl011 --on-reset restart --device virtio_blk,disk=one.img,transport=pci,id=one \
    --device virtio_blk,disk=two.img,transport=mmio,id=two --device virtio_blk,disk=mark.img,transport=pci,id=mark \
    --device virtio_rng,transport=pci
expect_status 0
[ "$(grep -c '^device: pci' console.log)" = 6 ] || fail "there are not three devices on PCI in both lives"
expect_console '^device: virtio_mmio'
[ "$(grep -c '^verified 2 processes' console.log)" = 4 ] || fail "not all disks verified in both lives"
expect_console '^random numbers$'
expect_console '^second life$'
