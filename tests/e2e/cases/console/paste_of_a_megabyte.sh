# A megabyte pasted into the virtio console arrives whole.
tr -dc 'a-z0-9 \n' </dev/urandom | head -c 1048576 >text
cmdline='quiet panic=-1'
limit=300
guest <<'END'
stty raw -echo
echo "ready"
head -c 1048576 | sha256sum
END
terminal 'wait:ready' 'paste:text' --
expect_status 0
expect_console "^$(sha256sum <text | cut -d' ' -f1)"
