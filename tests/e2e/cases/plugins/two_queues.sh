# The tutorial's virtio device sends a guest back what it sends: in process, isolated, and as a back end.
cmdline="$cmdline modules=virtio_console"
guest <<'EOF'
# Held open: the last close sets the terminal back.
exec 3<>/dev/hvc0
stty raw -echo <&3
echo hello >&3
echo once more >&3
head -n 2 <&3 >/run/back
sed 's/^/back: /' /run/back
EOF
# Without the console of the default devices, this one is hvc0.
boot --no-defaults --device pl011 --device /bed/lib/libecho.so,upper=on
expect_status 0
expect_console '^back: HELLO$'
expect_console '^back: ONCE MORE$'
boot --no-defaults --device pl011 --device /bed/lib/libecho.so,upper=on,isolate=required
expect_status 0
expect_console '^back: ONCE MORE$'
back_end /gvmm/gvmm-device /bed/lib/libecho.so,upper=on --socket-path echo.sock
boot --no-defaults --device pl011 --device vhost-user,type=console,queue-size=64,socket=echo.sock
expect_status 0
expect_console '^back: ONCE MORE$'
