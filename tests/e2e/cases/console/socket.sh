# A console on a socket: a megabyte arrives whole, one who comes late sees the last of it and can type.
cmdline="$cmdline modules=virtio_console"
guest <<'END'
exec 3<>/dev/hvc0
stty raw -echo <&3
echo early >&3
head -c 3 <&3
# In blocks: written line by line it takes minutes under emulation.
seq 160000 | cat >&3
echo the end >&3
head -c 4 <&3
END
start --device virtio_console,console=socket:vm.sock
await '@begin'
guestio socket vm.sock --log first --then wait:early --then type:one --then 'wait:the end' --timeout "$limit"
guestio socket vm.sock --log late --then 'wait:the end' --then type:more --to-end --timeout "$limit"
finish
expect_status 0
expect_console '^onemore'
[ ! -e vm.sock ] || fail "the socket is left over"
seq 160000 >numbers
grep -E '^[0-9]+$' first | cmp - numbers || fail "the first client lacks something"
[ "$(wc -c <late)" -le 262144 ] || fail "the late client got more than is kept"
sed 1d late | grep -E '^[0-9]+$' >last
tail -n "$(wc -l <last)" numbers | cmp - last || fail "the late client lacks something"
