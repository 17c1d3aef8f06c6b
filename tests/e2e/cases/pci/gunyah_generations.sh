# The later drivers lead register accesses, and messages of a device on PCI, to and from a protected guest. Its device
# reaches no buffers: Debian's kernels put none into the shared window.
guest <<'END'
function=$(basename /sys/bus/pci/devices/*)
echo "$function $(cat "/sys/bus/pci/devices/$function/vendor" "/sys/bus/pci/devices/$function/device" | xargs)"
readlink "/sys/bus/pci/devices/$function/driver" | xargs basename
cat /proc/interrupts
END
cmdline="$cmdline modules=vmw_vsock_virtio_transport"
for generation in B C; do
    gunyah $generation
    boot --accel gunyah --protected --swiotlb 16M --no-defaults --device pl011 --device virtio_vsock,socket=vm.sock,transport=pci
    expect_status 0
    expect_console '^0000:00:00\.0 0x1af4 0x1053$'
    expect_console '^virtio-pci$'
    expect_console 'MSI.*virtio0-rx$'
    left_nothing
done
