"""Does it leak: what a bundle and a release give away of the text they were made from."""
