"""Does a selection beat random?  Proxies trained on what runs have kept, and on what anybody could have taken."""
