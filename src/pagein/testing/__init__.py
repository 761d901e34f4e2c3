"""Public test tools: what one needs to try pagein, or code on top of it, without a network.

`pagein.testing.webserver` serves ranges from loopback, at a chosen rate, and can lie.
`pagein.testing.proxy` is a link with a round-trip time and a bandwidth, which counts.
"""
