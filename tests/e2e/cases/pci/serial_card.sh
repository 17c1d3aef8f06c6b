# Linux drives a plugin's PCI device that is not virtio, a serial card: by its message, and under Gunyah by its line. What
# passes in either direction arrives whole.
guest <<'END'
function=$(basename /sys/bus/pci/devices/*)
echo "driver $(basename "$(readlink "/sys/bus/pci/devices/$function/driver")")"
cat /proc/tty/driver/serial
exec 3<>/dev/ttyS0
stty raw -echo <&3
echo ready >&3
echo "typed $(head -c 6 <&3)"
seq 1000 | cat >&3
echo the end >&3
echo "typed $(head -c 4 <&3)"
grep ttyS0 /proc/interrupts
END
talk() {
    start --no-defaults --device pl011 --device pci_serial,console=socket:card.sock --stats stats.json "$@"
    await '@begin'
    guestio socket card.sock --log shown --then wait:ready --then type:strike --then 'wait:the end' --then type:done \
        --to-end --timeout "$limit"
    finish
    expect_status 0
    expect_console '^driver serial$'
    expect_console '^0: uart:U6_16550A mmio:0x'
    expect_console '^typed strike$'
    expect_console '^typed done$'
    grep -E '^[0-9]+$' shown | tr -d '\r' >numbers
    seq 1000 | cmp - numbers || fail "the host got something else than the guest sent"
    [ "$(stat_of tx_lost_bytes)" = 0 ] || fail "output was lost"
}
talk
expect_console 'MSI.*ttyS0$'
cmdline="$cmdline pci=nomsi"
gunyah A
talk --accel gunyah
expect_console 'GICv3 .*ttyS0$'
no_console 'MSI'
left_nothing
