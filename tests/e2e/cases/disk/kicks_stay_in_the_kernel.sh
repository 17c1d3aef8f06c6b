# Requests to a disk on virtio-mmio do not leave the kernel as register writes: at most one write for each interrupt's end.
disk data.img 32
requests=2000
guest <<EOF
dd if=/dev/vda of=/dev/null bs=4k count=$requests iflag=direct
EOF
boot --stats stats.json --device virtio_blk,disk=data.img,transport=mmio
expect_status 0
cat stats.json
writes=$(awk '/"plugin": "virtio_blk"/ { found = 1 } found && /"register_writes"/ { print $2 + 0; exit }' stats.json)
# A kick that left the kernel would be a second write for each request.
[ "$writes" -lt $((requests * 3 / 2)) ] || fail "$writes register writes for $requests requests"
