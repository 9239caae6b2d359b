"""Evaluation of a voice on speakers it never heard, by judges that its training never used.

A run converts recordings between the speakers of each set, and each speaker into its own voice, measures the
results beside the source, a WORLD shift, copy-synthesis and the target, and writes JSON, Markdown and PNG.

    sets        the speakers and what each of their recordings is for
    pairs       who is converted into whom
    conditions  what makes a conversion harder
    systems     what makes the audio that is judged
    runtime     the voice under test through the public runtime
    judges      identity, words, naturalness; pitch and artifacts stand beside them
    judging     all judges on one pair, with their answers kept on disk
    running     the conversions in several processes
    summary, floor, report, plots     what is written
    examples    conversions to listen to, by a command of their own
    oracle      what the ops can do with ideal filters, by a command of its own
"""
