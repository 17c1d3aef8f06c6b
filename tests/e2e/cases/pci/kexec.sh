# A kernel that the guest starts in place of its own finds the devices in the middle of their work and gets on with them:
# messages, lines and doorbells are set up anew.
disk data.img 32
guest <<'END'
guestio verify /dev/vda --processes 2 --requests 100
cat /proc/interrupts
if [ "$(dd if=/dev/vdd bs=1 count=4 2>/dev/null)" != done ]; then
    printf done | dd of=/dev/vdd conv=sync,fsync 2>/dev/null
    cat /dev/vdb >/tmp/Image
    cat /dev/vdc >/tmp/initrd
    exec guestio kexec /tmp/Image /tmp/initrd
fi
END
# Whole sectors.
dd if="$KERNEL" of=kernel.img bs=64k conv=sync 2>/dev/null
dd if="$initrd" of=initrd.img bs=64k conv=sync 2>/dev/null
disk mark.img 1
memory=512M
boot --cpus 2 --no-defaults --device pl011 --device virtio_blk,disk=data.img,queues=2 \
    --device virtio_blk,disk=kernel.img,readonly=on --device virtio_blk,disk=initrd.img,readonly=on \
    --device virtio_blk,disk=mark.img,transport=mmio
expect_status 0
[ "$(grep -c '^verified 2 processes' console.log)" = 2 ] || fail "not verified in both kernels"
