"""A decoder of a handful of words, for tests of what is shown in a terminal."""

MASK, EOS, EOT = 99, 98, 97


class Words:
    """Decodes id i to the i-th word; ids 20 and 21 are the two halves of one character."""

    eos_id, eot_id, mask_id = EOS, EOT, MASK
    words = ("zero", " one", " two", " three", " four", " five")

    def decode(self, ids, skip_special_tokens=False):
        ids = [i for i in ids if not (skip_special_tokens and i in (EOS, EOT))]
        data = b"".join(
            {20: b"\xc3", 21: b"\xa9", EOS: b"<eos>", EOT: b"<eot>"}.get(i)
            or self.words[i].encode()
            for i in ids
        )
        return data.decode(errors="replace")
