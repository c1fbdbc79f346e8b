"""Errors that are the user's to mend, told apart from defects of ours."""


class UserError(Exception):
    """Something the user gave is wrong.

    The message is one line: it names the field or the file and the value, and says what would be right. The command
    line prints it without a traceback and exits with code 2.
    """
