# Bad input is refused with the exit code for bad usage and a message that names the thing and the way out.
limit=20

# refuse RE ARGUMENT...: gvmm must refuse the arguments with one line that matches, and leave nothing behind.
refuse() {
    expected=$1
    shift
    ls -A >before
    gvmm "$@"
    expect_status 2
    expect_message "^gvmm: .*$expected"
    [ "$(wc -l <gvmm.log)" = 1 ] || fail "more than one line"
    ls -A | diff before - || fail "left something behind"
}

touch before gvmm.log empty
head -c 1000000 "$KERNEL" >cut
echo text >text.so
# Machine 62 of the ELF header is x86-64.
cp "$plugins/pl031.so" foreign.so
chmod u+w foreign.so
printf '\076' | dd of=foreign.so bs=1 seek=18 conv=notrunc 2>/dev/null
disk a.img 8

refuse 'kernel nowhere: No such file' --kernel nowhere
refuse 'kernel empty is empty' --kernel empty
refuse 'kernel cut is incomplete: it has 1000000 of' --kernel cut
refuse 'not an arm64 kernel Image but an ELF file' --kernel "$GVMM"

set -- --kernel "$KERNEL" --initrd "$INITRD"
refuse 'initrd nowhere: No such file' --kernel "$KERNEL" --initrd nowhere
refuse 'need .* of guest memory, and there are 16 MiB.*--memory' "$@" --memory 16M
refuse 'memory of 0 bytes' "$@" --memory 0
refuse '3M is not a multiple of 2M: use 4M' "$@" --memory 3M
refuse 'more than the .* of this host' "$@" --memory 100G
refuse 'cpus 0' "$@" --cpus 0
refuse 'cpus 100000: at most' "$@" --cpus 100000

refuse "device id 'x' is used twice" "$@" --device virtio_blk,disk=a.img,id=x --device pl031,id=x
refuse "unknown option 'dsk'; did you mean 'disk'" "$@" --device virtio_blk,dsk=a.img
refuse "'queues': 'many' is not a number" "$@" --device virtio_blk,disk=a.img,queues=many
refuse "option 'disk' is missing" "$@" --device virtio_blk
refuse 'nosuch.so is in none of .*there are .*virtio_blk' "$@" --device nosuch
refuse 'text.so: not an ELF shared library' "$@" --device ./text.so
refuse 'foreign.so: built for x86-64' "$@" --device ./foreign.so
refuse 'no gvmm plugin' "$@" --device /usr/lib/aarch64-linux-gnu/libz.so.1

refuse 'disk nowhere.img does not exist' "$@" --device virtio_blk,disk=nowhere.img
refuse 'disk empty is empty' "$@" --device virtio_blk,disk=empty
refuse 'is open for writing in process .*lock=off' "$@" --device virtio_blk,disk=a.img --device virtio_blk,disk=a.img
