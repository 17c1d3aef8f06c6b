# Neither a kick nor an interrupt of a disk on PCI reaches user space: as many requests more are not one exit more. Nor do
# reads of its configuration space.
disk data.img 32
accesses() {
    guest <<EOF
dd if=/dev/vda of=/dev/null bs=4k count=$1 iflag=direct
EOF
    boot --no-defaults --device pl011 --stats stats.json --device virtio_blk,disk=data.img
    expect_status 0
    cat stats.json
    awk '/"plugin": "virtio_blk"/ { disk = 1 } disk && /"register_(reads|writes)"/ { sum += $2 }
        disk && /}/ { print sum; exit }' stats.json >accesses
    [ -s accesses ] || fail "the statistics have no disk"
}
accesses 100
few=$(cat accesses)
accesses 2100
many=$(cat accesses)
echo "register accesses: $few with 100 requests, $many with 2100"
# The kernel's probing of the disk varies by a few.
[ "$many" -lt $((few + 100)) ] || fail "requests cause register accesses"
# Writes to configuration space and the disk's registers are about 100 accesses; reads of that space alone are more.
[ "$few" -lt 170 ] || fail "reads of configuration space reach user space"
