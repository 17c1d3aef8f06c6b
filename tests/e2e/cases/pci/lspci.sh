# What lspci in a Debian root file system, which is that of the outer guest, says of the devices.
guest <<'END'
lspci -vv
END
serial=$(grep -lx base /sys/block/vd*/serial)
root=$(basename "${serial%/serial}")
cmdline="$cmdline root=/dev/vda modules=virtio_rng"
boot --no-defaults --device pl011 --device "virtio_blk,disk=/dev/$root,readonly=on" --device virtio_rng
expect_status 0
expect_console '^00:00\.0 Mass storage controller: Red Hat, Inc\. Virtio 1\.0 block device \(rev 01\)$'
expect_console '^00:01\.0 .* Red Hat, Inc\. Virtio 1\.0 RNG \(rev 01\)$'
expect_console 'Region 0: Memory at 10008000 \(32-bit, non-prefetchable\) \[size=32K\]$'
for part in CommonCfg Notify ISR DeviceCfg; do
    expect_console "Capabilities: \[[0-9a-f]+\] Vendor Specific Information: VirtIO: $part\$"
done
[ "$(grep -c 'MSI-X: Enable+ Count=2 Masked-$' console.log)" = 2 ] || fail "not both devices use messages"
[ "$(grep -c 'Kernel driver in use: virtio-pci$' console.log)" = 2 ] || fail "not both devices have a driver"
no_console 'rev ff|<chain (broken|looped)>|!!!'
