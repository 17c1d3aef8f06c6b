# Verified writes to qcow2 images over a backing file, in clusters of two sizes, leave images without a flaw and the backing file as it was.
disk base.img 32
dd if=/dev/urandom of=base.img bs=1M count=16 conv=notrunc 2>/dev/null
sum=$(md5sum <base.img)
guest <<'EOF'
md5sum </dev/vda
guestio verify /dev/vda --processes 2 --requests 200
sync
EOF
for cluster in 4096 65536; do
    qemu-img create -q -f qcow2 -F raw -b "$PWD/base.img" -o cluster_size=$cluster data.qcow2
    boot --device virtio_blk,disk=data.qcow2,format=qcow2,backing=base.img
    expect_status 0
    grep -q "^${sum%% *}" console.log || fail "the guest sees other data than the backing file has"
    expect_console '^verified 2 processes'
    qemu-img check data.qcow2 || fail "the image with clusters of $cluster bytes is flawed"
    [ "$(md5sum <base.img)" = "$sum" ] || fail "the backing file was written to"
done
