"""`marble rewards`: one file per command; `selection` finds the rewards that a command names."""

import typer

from marble_cli.cli.rewards import check, install, listing, new, score, serve, show

app = typer.Typer(
    no_args_is_help=True,
    help="List, show, check, score, serve, install and create rewards.",
    epilog="Example:  marble rewards show colorfulness",
)
app.command("list", epilog=listing.EPILOG)(listing.list_rewards)
app.command("show", epilog=show.EPILOG)(show.show)
app.command("check", epilog=check.EPILOG)(check.check)
app.command("score", epilog=score.EPILOG)(score.score)
app.command("serve", epilog=serve.EPILOG)(serve.serve)
app.command("install", epilog=install.EPILOG)(install.install)
app.command("new", epilog=new.EPILOG)(new.new)
