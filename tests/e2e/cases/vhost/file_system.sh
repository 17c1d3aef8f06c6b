# A folder of the host that virtiofsd shares is read and written in the guest, byte for byte.
[ -d /var ] || skip "no place for the lock of virtiofsd"
mount -t tmpfs tmpfs /var
mkdir shared
for name in a b c; do head -c 500000 /dev/urandom >shared/$name; done
(cd shared && md5sum a b c >sums)
cmdline="$cmdline modules=virtiofs"
guest <<'EOF'
mkdir -p /tmp/shared
mount -t virtiofs data /tmp/shared && cd /tmp/shared || exit 1
md5sum -c sums && echo "read as it is"
cat a b c >all && sync && echo "written"
EOF
back_end /usr/lib/qemu/virtiofsd --socket-path=fs.sock -o source="$PWD/shared"
boot --device vhost-user,type=fs,socket=fs.sock,tag=data
cat back_end.log
expect_status 0
expect_console '^read as it is'
expect_console '^written'
cat shared/a shared/b shared/c | cmp - shared/all
