# Verified writes to images of several cluster sizes, one of version 2, over raw and compressed files, leave images without a
# flaw and the backing files as they were.
disk base.img 16
dd if=/dev/urandom of=base.img bs=1M count=4 conv=notrunc 2>/dev/null
yes "it compresses well" | dd of=base.img bs=1M seek=8 count=4 iflag=fullblock conv=notrunc 2>/dev/null
qemu-img convert -q -c -f raw -O qcow2 base.img compressed.qcow2
sum=$(md5sum <base.img)
compressed_sum=$(md5sum <compressed.qcow2)
qemu-img create -q -f qcow2 -F raw -b "$PWD/base.img" -o cluster_size=512 small.qcow2
qemu-img create -q -f qcow2 -F raw -b "$PWD/base.img" -o cluster_size=4096,compat=0.10 old.qcow2
qemu-img create -q -f qcow2 -F qcow2 -b "$PWD/compressed.qcow2" -o cluster_size=2M large.qcow2
cp compressed.qcow2 own.qcow2
guest <<'EOF'
for disk in /dev/vd?; do
    md5sum <"$disk"
    guestio verify "$disk" --processes 2 --requests 100
done
sync
EOF
set --
for image in small old large own; do
    set -- "$@" --device "virtio_blk,disk=$image.qcow2,format=qcow2,backing=$PWD"
done
boot "$@"
expect_status 0
[ "$(grep -c "^${sum%% *}" console.log)" = 4 ] || fail "the guest sees other data than the backing file has"
[ "$(grep -c '^verified 2 processes' console.log)" = 4 ] || fail "not all disks keep what is written"
for image in small old large own; do
    qemu-img check "$image.qcow2" || fail "the image $image is flawed"
done
[ "$(md5sum <base.img)" = "$sum" ] || fail "the raw backing file was written to"
[ "$(md5sum <compressed.qcow2)" = "$compressed_sum" ] || fail "the compressed backing file was written to"
