# Without a word about consoles the guest's programs get the virtio console: each line once, at most 3 exits a line.
cmdline='quiet panic=-1'
exits() {
    guest <<END
readlink /proc/self/fd/1
seq $1 | sed 's/.*/line & of text that is about as long as the lines which people read on consoles/'
END
    boot --stats stats.json
    expect_status 0
    expect_console '^/dev/hvc0'
    [ "$(grep -c '^line' console.log)" = "$1" ] || fail "$1 lines were printed"
    [ -z "$(grep '^line' console.log | sort | uniq -d)" ] || fail "lines were printed twice"
    total=$(sed -n 's/.*"total": \([0-9]*\).*/\1/p' stats.json)
}
exits 1
before=$total
exits 101
echo "100 lines: $((total - before)) exits"
[ $((total - before)) -le 300 ] || fail "more than 3 exits a line"
