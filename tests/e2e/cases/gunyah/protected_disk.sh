# The disk of a protected guest works through the shared window on every driver that lends memory. This takes a kernel
# with CONFIG_DMA_RESTRICTED_POOL, which Debian's has not: /bed/protected/Image, or the test is skipped.
[ ! -e /bed/protected/Image ] || KERNEL=/bed/protected/Image
grep -q restricted-dma-pool "$KERNEL" || skip "the guest's kernel has no CONFIG_DMA_RESTRICTED_POOL"
for driver in 'A+ RM=production' B C; do
    # shellcheck disable=SC2086
    gunyah $driver
    disk data.img 32
    guest <<'END'
dmesg | grep -i 'restricted-dma-pool'
guestio verify /dev/vda --processes 4 --requests 300
END
    boot --accel gunyah --cpus 2 --protected --swiotlb 16M --no-defaults --device pl011 --device pl031 \
        --device virtio_blk,disk=data.img,queues=2
    expect_status 0
    expect_console 'restricted-dma-pool'
    expect_console '^verified 4 processes'
    left_nothing
done
