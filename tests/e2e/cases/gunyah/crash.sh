# A guest whose hypervisor reports a page fault that does not pass ends with the code for a crash and a clear message.
gunyah C INJECT=page-fault=ENOMEM:always:0x80100000
guest <<'END'
echo not reached
END
boot --accel gunyah --protected --swiotlb 16M --no-defaults --device pl011
expect_status 4
expect_message 'page fault at guest address 0x80100000.*50 tries'
left_nothing
